"""The TFDS builder: no TensorFlow, PNG images, three splits, the same rows as the functions give."""

import json
import subprocess
import sys

import numpy as np

from spatialreward_jax.data import editworld
from spatialreward_jax.data.editworld.builder import EditWorld, judged_edit


def test_rows_without_tensorflow(tmp_path):
    builder = EditWorld(config="tiny", data_dir=tmp_path)
    builder.download_and_prepare()
    sources = {split: builder.as_data_source(split=split) for split in editworld.SPLITS}
    assert [len(source) for source in sources.values()] == [24, 8, 8]
    rows = {row["truth"]: row for row in sources["test"]}
    for index in range(8):
        candidate = judged_edit("test", index)
        row = rows[json.dumps(candidate.sample.truth()).encode()]
        np.testing.assert_array_equal(row["edited"], candidate.image())
        np.testing.assert_array_equal(row["source"], editworld.render(candidate.sample.source))
        np.testing.assert_allclose(row["scores"], candidate.scores, rtol=1e-6)
        assert [tuple(box) for box in row["regions"]] == [region.box for region in candidate.regions]


def test_world_needs_neither_jax_nor_tensorflow():
    code = "import sys, spatialreward_jax.data.editworld as w; w.render(w.sample_edit('train', 0).target)"
    code += "; assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

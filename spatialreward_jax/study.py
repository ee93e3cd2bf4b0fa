"""The paper in miniature: runs what is missing of a study on EditWorld, and prints its table.

    python -m spatialreward_jax.study --study=boxes --workdir=studies --seeds=0,1,2
    python -m spatialreward_jax.study --study=boxes --arm=cited --seeds=0 --workdir=studies
    python -m spatialreward_jax.study --study=all --workdir=studies --table

Every arm of a study has the same number of updates or phases; each cell (arm, seed) is kept as JSON in the workdir and
never run again. --table runs nothing: cells that were not run show their command. The tables, of the seeds that are
given and of all others that were run, also go to WORKDIR/STUDY.md.
"""

import pathlib

from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.studies import STUDIES, claim, find_arm, run_cell, seeds_of, study_table


def define_flags() -> None:
    """The program's flags; not at import, so that programs can import each other."""
    flags.DEFINE_enum("study", None, [*STUDIES, "all"], "Which comparison.")
    flags.DEFINE_string("workdir", "", "Folder of all studies.")
    flags.DEFINE_string("arm", "", "Run this arm alone.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every arm.")
    flags.DEFINE_bool("table", False, "Run nothing, print the tables.")


def main(_argv: list[str]) -> None:
    """Runs the cells that are missing, prints and writes the tables."""
    given = flags.FLAGS
    if not given.study or not given.workdir:
        raise InputError("give --study=NAME (or all) and --workdir=FOLDER")
    if not all(seed.isdigit() for seed in given.seeds):
        raise InputError(f"--seeds={','.join(given.seeds)}: give whole numbers")
    if not given.table and not pathlib.Path("configs").is_dir():
        raise InputError("the commands name configs/*.py: run studies from a clone of the repository")
    root, seeds = pathlib.Path(given.workdir).absolute(), sorted({int(seed) for seed in given.seeds})
    studies = list(STUDIES) if given.study == "all" else [given.study]
    for study in studies if given.arm else ():
        find_arm(study, given.arm)  # refused before any cell is run
    if not given.table or (root.is_dir() and pathlib.Path("configs").is_dir()):
        claim(root)
    for study in studies:
        arms = [given.arm] if given.arm else list(STUDIES[study].arms)
        for seed in () if given.table else seeds:
            for arm in arms:
                run_cell(root, study, arm, seed)
        table = study_table(root, study, sorted(seeds_of(root, study) | set(seeds)))
        if root.is_dir():
            (root / f"{study}.md").write_text(table, encoding="utf-8")
        print(table, flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

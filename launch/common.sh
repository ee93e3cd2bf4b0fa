# Shared by pod.sh and gke.sh: flags, errors, and running or printing commands. Sourced, not run.
# shellcheck shell=bash

dry_run=""

fail() {
  echo "error: $*" >&2
  exit 2
}

# Prints one argument so that a shell reads it back unchanged.
quoted() {
  if [[ $1 =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then printf '%s' "$1"; else printf '%s' "${1@Q}"; fi
}

# Prints a command on one line.
show() {
  local line="" word
  for word in "$@"; do line+="${line:+ }$(quoted "$word")"; done
  printf '%s\n' "$line"
}

# Runs a command, or only prints it under --dry_run.
run() {
  if [[ -n $dry_run ]]; then show "$@"; else "$@"; fi
}

# Reads --flag=value into the variable `flag`, if its name is among the words of the first argument; switches (--flag) get 1.
# What follows a lone -- goes into the array `rest`.
parse_flags() {
  local _known=" $1 " _argument _flag # underscored: a local `name` would hide the variable of the flag --name
  shift
  rest=()
  while (($#)); do
    _argument=$1
    shift
    [[ $_argument == -- ]] && { rest=("$@"); return; }
    [[ $_argument == --* ]] || fail "unexpected argument '$_argument': flags look like --name=value, the program's follow --"
    _flag=${_argument#--}
    _flag=${_flag%%=*}
    [[ $_known == *" $_flag "* ]] || fail "unknown flag --$_flag: known are$_known"
    if [[ $_argument == *=* ]]; then printf -v "$_flag" '%s' "${_argument#*=}"; else printf -v "$_flag" '1'; fi
  done
}

# Fails unless every named variable has a value.
need() {
  local _flag
  for _flag in "$@"; do [[ -n ${!_flag:-} ]] || fail "--$_flag=... is missing"; done
}

# Prints the help: the comment at the head of a script.
help_of() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}

# The program and its flags (in `rest`) as one line for a shell: python -m spatialreward_jax.PROGRAM FLAGS.
program_line() {
  ((${#rest[@]})) || fail "give the program and its flags after --, e.g. -- train --config=configs/grpo.py --workdir=/mnt/bucket/run"
  [[ ${rest[0]} =~ ^[a-z_]+$ ]] || fail "'${rest[0]}' is no program: give train, evaluate, score, edit or another module's name"
  show "${rest[@]}"
}

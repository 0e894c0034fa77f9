# Sourced by .ci/run and .ci/full: a fresh environment, steps that print their time, and a summary.
# Within a step, bash ignores `set -e`: functions join their commands with &&.

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
summary=""

# Bytecode is written, whatever the environment says, and outside of the clone: each of the many processes of the tests
# imports torch, which takes twice as long from source. Two workers, one thread each.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$scratch/bytecode" OMP_NUM_THREADS=1

step() { # NAME COMMAND…: runs it, prints its time, ends the script if it fails
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@" || { printf '== %s: FAILED after %ss\n' "$name" $((SECONDS - start)) && exit 1; }
  printf '== %s: %ss\n' "$name" $((SECONDS - start))
  summary+=$(printf '%5ss  %s' $((SECONDS - start)) "$name")$'\n'
}

report() { printf '\n%s%5ss  total\n' "$summary" "$SECONDS"; }

install() { # VENV REQUIREMENT…: into a new virtual environment
  python3 -m venv "$1" && "$1/bin/pip" install --quiet --upgrade pip uv &&
    "$1/bin/uv" pip install --quiet --python "$1/bin/python" "${@:2}"
}

style() { ruff check . && ruff format --check .; }

rules_and_types() { # mypy takes as long as the others together, and one of the cores
  mypy &
  local types=$! others=0
  { lint-imports && ssl list --check; } || others=$?
  wait "$types" && return "$others"
}

new_environment() { # [EXTRA]: the project itself, editable, with its development tools; activates it
  step "install" install "$scratch/venv" -e ".[${1:-dev}]"
  source "$scratch/venv/bin/activate"
}

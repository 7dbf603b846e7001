#!/usr/bin/env bash
# Print the path of the first Python that works, tried in the order of the given versions.
#
#     launch/find_python.sh 3.13 3.12 3.11
#
# Looks at python3.X and python3 on PATH and at what pyenv has installed.  "Works" means that it starts (a pyenv shim on
# PATH may not) and can make a virtual environment.  Exit code 1, and nothing printed, when there is none.
# PSYNTH_PYTHON names the one interpreter to take instead, of any version from 3.11 on.
set -euo pipefail

# Print "MAJOR.MINOR PATH" of a Python that works; fail otherwise.
probe() {
  "$1" -I -c '
import sys, sysconfig, venv
try:
    import ensurepip
except ImportError:
    import pip
if sys.version_info < (3, 11) or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
print("%d.%d" % sys.version_info[:2], getattr(sys, "_base_executable", sys.executable))
' 2>/dev/null </dev/null
}

if [[ -n "${PSYNTH_PYTHON:-}" ]]; then
  if ! found=$(probe "$PSYNTH_PYTHON"); then
    echo "PSYNTH_PYTHON=$PSYNTH_PYTHON is not a Python of version 3.11 or newer that can make a virtual environment" >&2
    exit 1
  fi
  echo "${found#* }"
  exit
fi

pyenv_versions=""
if command -v pyenv >/dev/null; then
  pyenv_versions="$(pyenv root 2>/dev/null)/versions"
fi

for version in "$@"; do
  candidates=("python$version" python3)
  if [[ -n "$pyenv_versions" ]]; then
    candidates+=("$pyenv_versions/$version".*/bin/python)
  fi
  for candidate in "${candidates[@]}"; do
    if found=$(probe "$candidate") && [[ "${found%% *}" == "$version" ]]; then
      echo "${found#* }"
      exit
    fi
  done
done
exit 1

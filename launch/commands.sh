#!/usr/bin/env bash
# What the scripts that start training share: they source this file.
#
# Messages go to stderr, a line each.  Wrong arguments end a script with exit code 2.  With a dry run, commands are printed
# on stdout instead, one a line, quoted so that a shell reads back the same words.
set -euo pipefail

dry_run="" # not empty: print commands, run none

fail() {
  echo "$1" >&2
  exit 2
}

# Print words as a shell has to be given them.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

run() {
  if [[ -n "$dry_run" ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# Print the comment at the top of a script.
help_of() {
  local line
  while IFS= read -r line && [[ "$line" == "#"* ]]; do
    [[ "$line" == "#!"* ]] || { line="${line#\#}" && echo "${line# }"; }
  done <"$1"
}

# Fail unless an option is followed by a value: needs_value "$@", where $1 is the option.
needs_value() { [[ $# -ge 2 ]] || fail "$1 needs a value"; }

# check OPTION VALUE PATTERN EXAMPLE: fail unless a value was given and has the form that it must have.
check() {
  [[ -n "$2" ]] || fail "$1 is missing: give one such as $1 $4"
  [[ "$2" =~ ^($3)$ ]] || fail "$1 cannot be '$2': give one such as $4"
}

# Fail unless the arguments are a config and overrides: check_run SCRIPT CONFIG [key=value ...].
check_run() {
  local argument
  [[ $# -ge 2 ]] || fail "CONFIG is missing; see $1 --help"
  for argument in "${@:3}"; do
    [[ "$argument" =~ ^[A-Za-z_][A-Za-z0-9_.]*= ]] ||
      fail "'$argument' is no override: options come before CONFIG, then key=value"
  done
}

# Fail unless a config is a file of a commit: that is what other machines are sent.
check_committed() {
  local root="$1" ref="$2" config="$3"
  git -C "$root" rev-parse --quiet --verify "$ref^{commit}" >/dev/null ||
    fail "--ref cannot be '$ref': git knows no such commit"
  [[ "$(git -C "$root" cat-file -t "$ref:./$config" 2>/dev/null)" == blob ]] ||
    fail "$config is no file of $ref: commit it, and give its path from the top of the checkout"
  if [[ "$ref" == HEAD && -n "$(git -C "$root" status --porcelain --untracked-files=no)" ]]; then
    echo "note: changes that are not committed stay here" >&2
  fi
}

# Print Google's name of a slice: v5e-16, as psynth compile has it, is v5litepod-16.
accelerator_type() { echo "${1/#v5e-/v5litepod-}"; }

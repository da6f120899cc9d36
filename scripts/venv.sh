# Sourced by the commands beside this file: makes and refreshes .venv from the pinned requirements.
#
# Afterwards $root is the checkout and $python the interpreter in .venv. It is started by its path
# and tools with `-m`, so that a checkout can be moved together with its .venv.
#
# PYTHON names the interpreter to use (3.10 to 3.12); .venv is made again when its version differs.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

say() { printf 'scripts/%s: %s\n' "${0##*/}" "$1" >&2; }

# Write the version of the interpreter $1, such as 3.11; fail if the pins are not made for it.
supported_version() {
    "$1" -c 'import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null </dev/null
}

# Write the name of the interpreter to make .venv with.
choose_python() {
    local name lacking='' names=(python3 python3.12 python3.11 python3.10)
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for name in "${names[@]}"; do
        supported_version "$name" >/dev/null || continue
        if "$name" -c 'import ensurepip, venv' 2>/dev/null </dev/null; then
            printf '%s\n' "$name"
            return
        fi
        lacking=${lacking:-$name}
    done
    if [ -n "$lacking" ]; then
        say "$lacking lacks the venv module; install it (Debian: apt-get install python3-venv)"
    elif [ -n "${PYTHON:-}" ]; then
        say "PYTHON: expected the name of a Python 3.10, 3.11 or 3.12, got '$PYTHON'"
    else
        say "expected Python 3.10, 3.11 or 3.12, found none; install one or name it in PYTHON"
    fi
    return 1
}

# Write what .venv should be made from: the version of its Python, or of the one PYTHON names, and
# the text of the requirement files $@ and of what they bring along. Fail when there is no such Python.
wanted_state() {
    local version
    version=$(supported_version "$python") || return
    [ -z "${PYTHON:-}" ] || version=$(supported_version "$PYTHON") || return
    printf 'Python %s\n' "$version"
    cat -- "$@"
    [ ! -f "$root/constraints/python$version.txt" ] || cat -- "$root/constraints/python$version.txt"
}

# Succeed if the stamp $1 holds that.
is_fresh() {
    local stamp=$1 wanted
    shift
    wanted=$(wanted_state "$@") && [ -f "$stamp" ] && [ "$wanted" = "$(<"$stamp")" ]
}

make_environment() {
    local base version
    base=$(choose_python) || return
    if version=$(supported_version "$python") && "$python" -m pip --version >/dev/null 2>&1; then
        [ -n "${PYTHON:-}" ] && [ "$version" != "$(supported_version "$base")" ] || return 0
    fi
    say "making .venv with $base"
    "$base" -m venv --clear "$root/.venv" >&2 </dev/null
}

# Install the requirement file $2, then leave the stamp $1.
install_requirements() {
    local stamp=$1 quiet=--quiet locked constraint=()
    shift
    make_environment || return
    locked=$root/constraints/python$(supported_version "$python").txt
    [ ! -f "$locked" ] || constraint=(--constraint "$locked")
    [ ! -t 2 ] || quiet=--progress-bar=on
    rm -f -- "$stamp"
    say "installing ${1##*/} into .venv; the first time, this takes minutes"
    if ! "$python" -m pip install --disable-pip-version-check --no-input "$quiet" -r "$1" \
        "${constraint[@]}" >&2 </dev/null; then
        say "the installation did not finish; run this again when what pip says above is cured"
        return 1
    fi
    wanted_state "$@" >"$stamp.part" && mv -f -- "$stamp.part" "$stamp"
}

# Bring .venv to what a requirement file of the checkout says; nothing is done when it is there.
#
#     ensure_venv requirements.txt [FILE ...]     FILE: those that it includes
ensure_venv() {
    local stamp=$root/.venv/$1.stamp files=("${@/#/$root/}")
    ! is_fresh "$stamp" "${files[@]}" || return 0
    (
        flock --nonblock 9 || { say "waiting for another set-up of .venv" && flock 9; } || exit
        is_fresh "$stamp" "${files[@]}" || install_requirements "$stamp" "${files[@]}"
    ) 9<"$root/scripts/venv.sh" || exit 2
}

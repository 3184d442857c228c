# Sourced by the launch scripts: makes the virtual environment of this checkout and installs pinned requirements.
# Usage: setup_env [PYTHON]; afterwards $PY is the environment's interpreter. Safe to call again: it only does what is missing.
setup_env() {
  local python=${1:-python3} root version venv pins stamp
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  case "$version" in
    3.11) venv=$root/.venv ;;
    3.12 | 3.13) venv=$root/.venv-$version ;;
    *) echo "jaxar needs Python 3.11 or 3.12; $python is $version. Pass --python=PATH." >&2; return 2 ;;
  esac
  # The default interpreter owns .venv whatever its version; another one gets a folder of its own.
  [ "$(command -v "$python")" = "$(command -v python3)" ] && venv=$root/.venv
  pins=$root/launch/constraints/py${version/./}.txt
  [ -f "$pins" ] || pins=$root/launch/constraints/py312.txt
  stamp=$venv/.installed
  PY=$venv/bin/python
  if ! "$PY" -m pip --version >/dev/null 2>&1; then  # none, or one whose making was interrupted
    "$python" -m venv --clear "$venv"
  fi
  if [ ! -f "$stamp" ] || ! cmp -s "$stamp" <(cat "$root/setup.py" "$pins"); then
    echo "installing requirements into ${venv#"$root"/} (once)" >&2
    "$PY" -m pip install -q --disable-pip-version-check -c "$pins" -e "$root[test]" >&2
    cat "$root/setup.py" "$pins" >"$stamp"
  fi
}

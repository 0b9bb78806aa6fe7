#!/bin/sh
# What pip cannot bring: a C++ compiler, Python's headers and venv. As root on Debian they are installed, and the
# command is shown first; otherwise it is only shown.
set -eu
python=${1:-python3}
missing=""

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || {
    echo "fastinfer needs Python 3.11 to 3.14; $python is $("$python" -V 2>&1)." >&2
    exit 1
}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$(command -v c++ || command -v g++)" ] || missing="$missing g++"
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
[ -e "$header" ] || missing="$missing python$version-dev"
[ -n "$missing" ] || exit 0

install="apt-get install -y --no-install-recommends$missing"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "+ apt-get update && $install"
    { apt-get update -qq && $install; } || {
        echo "Could not install:$missing. They are needed; install them by hand." >&2
        exit 1
    }
else
    echo "Missing:$missing. On Debian, as root: $install" >&2
    exit 1
fi

#!/bin/sh
# Nightly: real power cuts, on an ext4 image on a loop device; see tools/power_cut.py. Needs root.
#
#   tools/power_cut.sh [--rounds N] [--seed N] [--dir FOLDER]
#
# Exit code 1 where the promise was broken; 0 with "skipped: why" where this machine cannot do it.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
if [ ! -x "$python" ]; then
	echo "skipped: there is no $python; run \`make test\` once"
	exit 0
fi
if [ ! -e /dev/loop-control ]; then
	echo "skipped: this machine has no loop devices"
	exit 0
fi
exec "$python" "$here/tools/power_cut.py" "$@"

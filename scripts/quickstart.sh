#!/usr/bin/env bash
# From nothing to two trained models: virtual environment, installation, data, plans, CrossMatch and the
# supervised nnU-Net with the same labels, predictions, Dice scores, a picture. About eight minutes on two CPU cores.
#   scripts/quickstart.sh                                        a small synthetic dataset
#   scripts/quickstart.sh --data hippocampus|la|acdc PATH        real files, as their converters want them
# Everything goes to ./quickstart (or the folder in $QUICKSTART).
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${QUICKSTART:-$PWD/quickstart}
mkdir -p "$folder"
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "$repository"
exec "$folder/venv/bin/python" "$repository/scripts/quickstart.py" --folder "$folder" "$@"

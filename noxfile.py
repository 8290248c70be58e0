# SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The test sets. `./dev test` prepares the machine and runs them; `./dev test SET -- ARGUMENTS` narrows one.

Plain nox rather than antsibull-nox: that one runs ansible-test in containers and fetches ansible-core from GitHub.
The sessions make their own environments (tests/tools/envs.py), because one session needs several Pythons.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nox
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tests.tools import pythons
from tests.tools.checks import Checks
from tests.tools.envs import ROOT, STATE, ensure
from tests.tools.tree import COLLECTIONS, TREE, sync

# A SIGTERM then takes down what was set up, also where a SIGINT is ignored, as in the background of a script.
signal.signal(signal.SIGTERM, signal.default_int_handler)

SETS = ("lint", "sanity", "units", "galaxy", "docs", "generations", "lab", "integration", "e2e", "faults", "campaign")
#: The generations of libvirt and QEMU that everything has to work on, by the Debian release that has them
GENERATIONS = ("debian11", "debian12", "debian13", "forky")
#: Those that `generations` runs: the oldest and the newest. The faults have two others; --long adds what is between
EDGES = (GENERATIONS[0], GENERATIONS[-1])
#: How the integration targets are named whose outcome depends on that, and those that do by qemu-img only
DEPENDING = (
    "block_commit",
    "block_pull",
    *(f"snapshot_{what}" for what in ("delete", "external", "internal", "metadata", "revert")),
)
DEPENDING_A_LITTLE = ("block_job", "image_backup", "snapshot_info")

nox.options.sessions = SETS
nox.options.default_venv_backend = "none"

# The user's PATH may hold pyenv's shims, that is Pythons that are none; ansible-test would take them.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where ./dev put nox itself, ansible-core and pytest
BIN = Path(sys.executable).parent
LAB = TREE / "tests" / "lab" / "lab"
# What a user of the collection gets: galaxy.yml's build_ignore leaves out the rest.
SHIPPED = {
    *("CHANGELOG.rst", "CODE_OF_CONDUCT.md", "COPYING", "FILES.json", "LICENSES", "MANIFEST.json", "README.md"),
    *("REUSE.toml", "changelogs", "docs", "meta", "playbooks", "plugins", "roles"),
}


def environment(*folders: Path, **variables: str) -> dict[str, str]:
    """Return the process environment for a tool: these folders before the system's, and our collection on the path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHON", "VIRTUAL_ENV"))}
    env["PATH"] = os.pathsep.join([*map(str, folders), SYSTEM_PATH])
    env["LC_ALL"] = "C.UTF-8"  # ansible refuses a locale that is not UTF-8
    env["ANSIBLE_COLLECTIONS_PATH"] = str(COLLECTIONS)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    if not sys.stdout.isatty():
        env["NO_COLOR"] = "1"
    return {**env, **variables}


def newest_python() -> Path:
    """Return the newest Python that Ansible's tools run on."""
    usable = [v for v in pythons.available() if v in pythons.CONTROLLER["2.19"] + pythons.CONTROLLER["2.21"]]
    return pythons.available()[usable[-1]]


def core_environment(core: str, python: str) -> Path:
    """Return the bin folder of an ansible-core, with what its sanity tests and units need."""
    bin_ = ensure(f"core-{core}", pythons.available()[python], f"ansible-core=={core}.*", "sanity", "units")
    provide_pip_bootstrap(bin_)
    return bin_


def provide_pip_bootstrap(core_bin: Path) -> None:
    """Put our stand-in for get-pip.py where this ansible-test looks first, if there is none. See its docstring."""
    (source,) = core_bin.parent.glob("lib/python*/site-packages/ansible_test/_internal/python_requirements.py")
    cache = Path.home() / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in set(re.findall(r"""\bpip=['"]([\d.]+)['"]""", source.read_text(encoding="utf-8"))):
        script = cache / f"get_pip_{version.replace('.', '_')}.py"
        if not script.exists():
            shutil.copyfile(ROOT / "tests" / "tools" / "get_pip.py", script)


def is_long() -> bool:
    """Whether `./dev test` was called with --long."""
    return bool(os.environ.get("DEV_LONG"))


def edges(items: Sequence[str]) -> tuple[str, ...]:
    """Return the first and the last of some versions, all of them with --long: what is between rarely differs."""
    return tuple(items) if is_long() else tuple(dict.fromkeys([*items[:1], *items[-1:]]))


def each_core(checks: Checks, *, newest_only: bool = False) -> Iterator[tuple[str, Path]]:
    """Yield the oldest and the newest ansible-core that this machine has a Python for, with --long each.

    With their bin folders; say what the machine has not.
    """
    print("Pythons:", ", ".join(f"{v} ({path})" for v, path in pythons.available().items()))
    print("not available:", ", ".join(v for v in pythons.ALL if v not in pythons.available()) or "none")
    usable = tuple(core for core in pythons.CORES if pythons.controller_for(core))
    cores = usable[-1:] if newest_only else tuple(c for c in pythons.CORES if c in edges(usable) or c not in usable)
    for core in cores:
        python = pythons.controller_for(core)
        if python:
            yield core, core_environment(core, python)
        else:
            checks.skip(f"ansible-core {core}", f"needs one of Python {', '.join(pythons.CONTROLLER[core])}")


def shell_scripts() -> list[str]:
    """Return the files of the tree that a POSIX shell or bash runs."""
    found = []
    for path in sorted(TREE.rglob("*")):
        name = path.relative_to(TREE)
        if name.parts[0] == ".git" or name.parts[:2] == ("tests", "output") or not path.is_file() or path.is_symlink():
            continue
        with open(path, "rb") as file:
            if re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh\b", file.readline(80)):
                found.append(str(name))
    return found


def typed_test_folders() -> list[str]:
    """Return the folders of test tooling that are checked for types."""
    names = ("bench", "campaign", "demo", "e2e", "faults", "lab", "plays", "tools")
    return [f"tests/{name}" for name in names if any((TREE / "tests" / name).rglob("*.py"))]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, licences, docs: everything that reads and runs nothing."""
    sync()
    bin_ = ensure("lint", newest_python(), "lint")
    typing = ensure("typing", newest_python(), "typing")
    # As conftest.py has them on sys.path, and pytest finds the conftest of e2e itself in its folder
    folders = [TREE / "tests" / name for name in ("lab", "plays", "e2e")]
    packages = os.pathsep.join(map(str, [COLLECTIONS, *folders]))
    env = environment(bin_, MYPYPATH=packages, MYPY_CACHE_DIR=str(STATE / "mypy"), ANSIBLE_LINT_NODEPS="1")
    plugins = "ansible_collections.virtops.libvirt.plugins"
    with Checks("lint", session.error) as checks:
        for label, command in {
            "ruff check": ["ruff", "check", "."],
            "ruff format": ["ruff", "format", "--check", "--diff", "."],
            "mypy plugins": [typing / "mypy", "-p", f"{plugins}.modules", "-p", f"{plugins}.module_utils"],
            "mypy tests": [typing / "mypy", "--python-version", "3.11", *typed_test_folders()],
            "yamllint": ["yamllint", "--strict", "."],
            "ansible-lint": ["ansible-lint", "--offline", "--profile", "production", "--strict"],
            "reuse": ["reuse", "lint", "--lines"],
            "shellcheck": ["shellcheck", *shell_scripts()],
            "antsibull-changelog": ["antsibull-changelog", "lint"],
            "antsibull-docs": ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "."],
        }.items():
            checks.run(label, [bin_ / command[0], *command[1:]], cwd=TREE, env=env)


@nox.session
def sanity(session: nox.Session) -> None:
    """ansible-test sanity on the oldest and the newest ansible-core, with the newest on more than one Python.

    What is made once for each Python, import and compile, on the oldest and the newest of them. With --long, all of it
    on each ansible-core and each Python.
    """
    sync()
    with Checks("sanity", session.error) as checks:
        cores = list(each_core(checks))
        for core, bin_ in cores:
            env = environment(bin_, *(path.parent for path in pythons.available().values()))
            command = [bin_ / "ansible-test", "sanity", "--local", "--color", "no", *session.posargs]
            if is_long():
                checks.run(f"ansible-core {core}", command, cwd=TREE, env=env)
                continue
            own = pythons.controller_for(core) or ""
            checks.run(f"ansible-core {core}", [*command, "--python", own], cwd=TREE, env=env)
            for python in edges(pythons.for_core(core)) if core == cores[-1][0] and not session.posargs else ():
                if python != own:
                    each = [*command, "--test", "import", "--test", "compile", "--python", python]
                    checks.run(f"ansible-core {core} on Python {python}", each, cwd=TREE, env=env)


@nox.session
def units(session: nox.Session) -> None:
    """ansible-test units on the newest ansible-core with the oldest and the newest Python, on the oldest with one.

    With --long, on each with each.
    """
    sync()
    with Checks("units", session.error) as checks:
        cores = list(each_core(checks))
        for core, bin_ in cores:
            versions = edges(pythons.for_core(core))
            if core != cores[-1][0] and not is_long():
                versions = versions[:1]
            # ansible-test runs the Python of its own version from its own environment, and finds the others on PATH.
            others = [v for v in versions if v != pythons.controller_for(core)]
            folders = [ensure(f"units-{v}", pythons.available()[v], "units") for v in others]
            junit = TREE / "tests" / "output" / "junit"
            for old in junit.glob("python*-units.xml"):  # beside them lie those of the integration tests
                old.unlink()
            problem = None
            for version in versions:
                command = [bin_ / "ansible-test", "units", "--local", "--color", "no", "--python", version]
                command += session.posargs
                label = f"ansible-core {core} on Python {version}"
                env = environment(*folders, bin_)
                problem = checks.run(label, command, cwd=TREE, env=env, counts=False) or problem
            checks.add_junit(f"ansible-core {core}", sorted(junit.glob("python*-units.xml")), problem)


@nox.session
def galaxy(session: nox.Session) -> None:
    """Build the artifact and import it as Galaxy would."""
    sync()
    bin_ = ensure("galaxy", newest_python(), "galaxy")
    dist = STATE / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    settings = dist / "galaxy-importer.cfg"
    env = environment(bin_, GALAXY_IMPORTER_CONFIG=str(settings))
    with Checks("galaxy", session.error) as checks:
        checks.run("build", ["ansible-galaxy", "collection", "build", "--output-path", dist], cwd=TREE, env=env)
        (artifact,) = dist.glob("*.tar.gz")
        with tarfile.open(artifact) as tar:
            surplus = {name.split("/")[0] for name in tar.getnames()} - SHIPPED
        checks.report("contents", f"not for users: {', '.join(sorted(surplus))}" if surplus else None)
        settings.write_text("[galaxy-importer]\nCHECK_REQUIRED_TAGS = True\nRUN_FLAKE8 = False\n", encoding="utf-8")
        importer = [bin_ / "python", "-m", "galaxy_importer.main", artifact]
        checks.run("galaxy-importer", importer, cwd=dist, env=env, verdict=complaints)


def complaints(output: str) -> str | None:
    """Return what the Galaxy importer found wrong: it exits 0 whatever it says."""
    found = [line for line in output.splitlines() if re.match(r"(WARNING|ERROR|CRITICAL|Traceback)", line)]
    if "Importer processing completed successfully" not in output:
        found.append("the import was not completed")
    return "; ".join(found) or None


@nox.session
def docs(session: nox.Session) -> None:
    """Build the HTML documentation of every module, role and playbook into .dev/docs/html."""
    sync()
    bin_ = ensure("docs", newest_python(), "docs")
    site = STATE / "docs"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(mode=0o700)  # antsibull-docs refuses a folder that others may write to
    env = environment(bin_)
    init = ["antsibull-docs", "sphinx-init", "--use-current", "--squash-hierarchy", "--lenient", "--dest-dir", site]
    with Checks("docs", session.error) as checks:
        checks.run("prepare", [*init, "virtops.libvirt"], cwd=TREE, env=env)
        with open(site / "conf.py", "a", encoding="utf-8") as settings:
            settings.write("\n\nintersphinx_mapping = {}  # other projects' sites may be out of reach\n")
        checks.run("build", [site / "build.sh"], cwd=site, env=env, verdict=broken_references)
    print(f"open {site / 'build' / 'html' / 'index.html'}")


def broken_references(output: str) -> str | None:
    """Return the links to our own pages that lead nowhere.

    Links to Ansible's pages cannot be resolved here, and playbooks have no page.
    """
    label = r"undefined label: 'ansible_collections\.virtops\.libvirt\.\w+_(?:module|role)'"
    found = re.findall(rf"^.*WARNING: {label}.*$", output, flags=re.MULTILINE)
    return "; ".join(found) or None


@nox.session
def integration(session: nox.Session) -> None:
    """ansible-test integration over SSH on a lab hypervisor: real libvirt and QEMU, and the distribution's own Python.

    On the newest ansible-core that the machine has a Python for, with --long on each.
    """
    sync()
    with Checks("integration", session.error) as checks:
        cores = list(each_core(checks, newest_only=not is_long()))
        run_targets(checks, "integration", "host", cores, session.posargs)


@nox.session
def generations(session: nox.Session) -> None:
    """Snapshots, merges, copies and a live backup on the oldest and the newest libvirt, but for the machine's own.

    With --long also on that between. With arguments one of them, and on it the targets that are named:
    `./dev test generations -- debian11 block_commit`.
    """
    sync()
    chosen, *targets = session.posargs or [""]
    with Checks("generations", session.error) as checks:
        cores = list(each_core(checks, newest_only=True))
        others = [found for found in GENERATIONS if found != own_generation() and (is_long() or found in EDGES)]
        for generation in [chosen] if chosen else others:
            run_targets(checks, f"on-{generation}", generation, cores, targets)
            if not targets and generation not in faults_generations():  # there it runs beside the faults
                live_backup = ["tests/faults/test_no_fault.py", "--generation", generation]
                command = [*pytest_command(f"generations-{generation}"), *live_backup]
                checks.run(f"{generation}: live backup", command, cwd=TREE, env=environment(BIN))


def own_generation() -> str:
    """Return which of GENERATIONS the machine itself is; its own files make the lab hypervisors of that one."""
    return f"debian{debian_release().partition('.')[0]}"


def run_targets(
    checks: Checks, hypervisor: str, generation: str, cores: list[tuple[str, Path]], chosen: Sequence[str]
) -> None:
    """Run integration targets on a lab hypervisor that lives as long as they do.

    On another generation than the machine's own, those that depend on it, and of these not what has the tag once.
    """
    env = environment()
    options = [] if generation == "host" else ["--generation", generation]
    depending = DEPENDING + DEPENDING_A_LITTLE if is_long() else DEPENDING
    try:
        subprocess.run([LAB, "up", hypervisor, *options], env=env, check=True)
        target = ssh_target(hypervisor, env)
        for core, bin_ in cores:
            python = f"origin:python={pythons.controller_for(core)}"
            command = [bin_ / "ansible-test", "integration", "--color", "no", "--controller", python]
            command += ["--target", target, "--allow-root", "--allow-destructive"]
            targets = chosen or integration_targets(command, environment(bin_))
            if generation != "host":
                command += ["--skip-tags", "once"]
                targets = chosen or [name for name in targets if name.startswith(depending)]
            for test in targets:
                label = f"{generation}, ansible-core {core}: {test}"
                checks.run(label, [*command, test], cwd=TREE, env=environment(bin_))
    finally:
        subprocess.run([LAB, "down", hypervisor], env=env, check=True)
    if not checks.passed + checks.failed:
        checks.report("targets", "there are none")


def ssh_target(name: str, env: dict[str, str]) -> str:
    """Return ansible-test's words for a lab hypervisor, and give ansible-test the key to it."""
    inventory = subprocess.run([LAB, "inventory"], env=env, check=True, stdout=subprocess.PIPE).stdout
    hypervisors = yaml.safe_load(inventory)["hypervisors"]
    keys = TREE / "tests" / "output" / ".tmp"  # ansible-test looks here before it makes a key of its own
    keys.mkdir(parents=True, exist_ok=True)
    key = Path(hypervisors["vars"]["ansible_ssh_private_key_file"])
    for source, copy, mode in ((key, "id_rsa", 0o600), (key.with_suffix(".pub"), "id_rsa.pub", 0o644)):
        shutil.copyfile(source, keys / copy)
        (keys / copy).chmod(mode)
    version = subprocess.run(
        [LAB, "exec", name, "--", "/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()
    port = hypervisors["hosts"][name]["ansible_port"]
    return f"ssh:root@127.0.0.1:{port},python={version}@/usr/bin/python3"


def integration_targets(command: list[str | Path], env: dict[str, str]) -> list[str]:
    """Return the names of the integration tests."""
    listing = [str(word) for word in [*command, "--list-targets"]]
    done = subprocess.run(listing, cwd=TREE, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


@nox.session
def lab(session: nox.Session) -> None:
    """What every test on guests takes for granted about the lab itself."""
    run_pytest(session, "lab")


@nox.session
def e2e(session: nox.Session) -> None:
    """The playbooks over SSH on lab hypervisors with running guests; test_cores.py on the oldest and newest cores."""
    cores = edges([core for core in pythons.CORES if pythons.controller_for(core)])
    folders = [core_environment(core, str(pythons.controller_for(core))) for core in cores]
    run_pytest(session, "e2e", VIRTOPS_CORES=os.pathsep.join(map(str, folders)))


@nox.session
def campaign(session: nox.Session) -> None:
    """Live backups of a writing guest, each killed at a random moment; arguments go to tests/campaign."""
    run_pytest(session, "campaign", "tests/campaign", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Each fault for real, on two generations of libvirt and QEMU side by side; with --long, `--mutate all` as well.

    On the second without the tests that are marked `once`, but with --long.
    With arguments one generation only: `./dev test faults -- -k fault_07 --generation debian13`, or `-- --mutate 7`.
    """
    if session.posargs:
        named = any(word.startswith("tests/") for word in session.posargs)
        run_pytest(session, "faults", *session.posargs, *([] if named else ["tests/faults"]))
        return
    sync()
    with Checks("faults", session.error) as checks:
        generations = faults_generations()
        outcomes = checks.side_by_side(
            {
                generation: [
                    *pytest_command(f"faults-{generation}", depending=generation != generations[0]),
                    *("tests/faults", "--generation", generation),
                ]
                for generation in generations
            },
            cwd=TREE,
            env=environment(BIN),
        )
        for generation in generations:
            checks.add_junit(generation, junit_files(f"faults-{generation}"), outcomes[generation])
        if is_long():
            command = [*pytest_command("faults-mutations"), "tests/faults", "--mutate", "all"]
            problem = checks.run("mutations", command, cwd=TREE, env=environment(BIN), counts=False)
            checks.add_junit("mutations", junit_files("faults-mutations"), problem)


def faults_generations() -> tuple[str, str]:
    """Return the two generations that all faults are made on, and the live backup without one."""
    return ("host" if own_generation() == "debian12" else "debian12", "debian13")


def debian_release() -> str:
    """Return the machine's Debian release, as 12.5; nothing elsewhere."""
    path = Path("/etc/debian_version")
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def run_pytest(session: nox.Session, name: str, *arguments: str, **variables: str) -> None:
    """Run tests/NAME, or with these arguments, in ./dev's own environment."""
    sync()
    arguments = arguments or tuple(session.posargs) or (f"tests/{name}",)
    with Checks(name, session.error) as checks:
        command = [*pytest_command(name), *arguments]
        problem = checks.run("pytest", command, cwd=TREE, env=environment(BIN, **variables), counts=False)
        checks.add_junit("pytest", junit_files(name), problem)


def pytest_command(name: str, *, depending: bool = False) -> list[str | Path]:
    """Return the command that leaves its counts to `junit_files`; with --long it runs also the tests marked `long`.

    `depending`: without --long only those whose outcome depends on the generation of libvirt and QEMU.
    """
    junit = STATE / "results" / f"{name}.xml"
    junit.unlink(missing_ok=True)
    left_out = [] if is_long() else ["not long", *(["not once"] if depending else [])]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.tools.interruptible"]
    command += ["--durations", "15", "--durations-min", "5", "--junitxml", junit]
    return [*command, *(["-m", " and ".join(left_out)] if left_out else [])]


def junit_files(name: str) -> list[Path]:
    """Return what it left."""
    return list((STATE / "results").glob(f"{name}.xml"))

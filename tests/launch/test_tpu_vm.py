"""The launcher's commands: what they print, what they refuse, and what they do to the stand-in."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile

import pytest

from effnetv2_jax.runtime.errors import UsageError
from launch.job import read_environment
from launch.workers import make_bundle
from tests.launch.stand_in.launcher import ROOT, interrupt, wait_until

PLACE = "--zone=europe-west4-a --quiet"


def printed(launcher, command, *arguments, **keywords):
    """The commands of a dry run, split as a shell would."""
    code, out, err = launcher.run(command, "--dry_run", *arguments, **keywords)
    assert (code, err) == (0, "")
    return [shlex.split(line) for line in out.splitlines()]


CREATED = {
    (): f"tpu-vm create pod --accelerator-type=v3-32 --version=tpu-ubuntu2204-base {PLACE}",
    ("--spot", "--create_flag=--network=net", "--project=my-project"): (
        "tpu-vm create pod --accelerator-type=v3-32 --version=tpu-ubuntu2204-base --spot "
        "--network=net --zone=europe-west4-a --project=my-project --quiet"
    ),
    ("--queued", "--reserved", "--valid_until=6h", "--runtime_version=v2-alpha"): (
        "queued-resources create pod --node-id=pod --accelerator-type=v3-32 "
        f"--runtime-version=v2-alpha --reserved --valid-until-duration=6h {PLACE}"
    ),
}


@pytest.mark.parametrize("flags", CREATED)
def test_create_says_what_gcloud_will_be_told(launcher, flags):
    commands = printed(launcher, "create", "--type=v3-32", *flags)
    assert f"gcloud compute tpus {CREATED[flags]}".split() in commands
    assert launcher.cloud.calls() == []


def test_a_dry_run_of_up_prints_what_up_does_and_does_nothing(launcher):
    arguments, keywords = launcher.up("--delete_when_done", job=["--seconds=0"])
    commands = printed(launcher, *arguments, **keywords)
    assert launcher.cloud.calls() == []
    assert not os.path.exists(launcher.environment["XDG_CACHE_HOME"])
    assert launcher.run(*arguments, **keywords)[0] == 0
    # Which also looks whether the job is done, more than once, and whether all is gone.
    asked = dict.fromkeys(
        tuple(call) for call in launcher.cloud.calls() if call[2] != "queued-resources"
    )
    assert [tuple(command[1:]) for command in commands] == list(asked)


def test_arguments_arrive_word_by_word_and_the_environment_without_being_printed(launcher):
    launcher.workdir = "gs://bucket/run 1 [ü]*?#%20'$HOME`x`\\\"🦊"
    words = ["--text=it's", "--size=(16, 20)", "--empty=", "--dollar=$HOME `x`", "--two=a  b\t;*"]
    launcher.environment |= {"SECRET": "a'b$c"}
    flags = ("--env=SECRET,EMPTY=,FLAGS=--a=1 --b", "--delete_when_done")
    arguments, keywords = launcher.up(*flags, job=words)
    code, out, err = launcher.run(*arguments, **keywords)
    assert code == 0
    log = next((launcher.folder / "logs").glob("*-w-0.log")).read_text()
    assert log.startswith(
        f"from step 0 {' '.join(words)} --workdir=../gcs/{launcher.workdir[5:]}\n"
    )
    environment = json.loads((launcher.folder / "environment.1").read_text())
    assert (environment["SECRET"], environment["EMPTY"]) == ("a'b$c", "")
    assert environment["FLAGS"] == "--a=1 --b"
    assert "a'b$c" not in out + err + json.dumps(launcher.cloud.calls())
    assert "environment: SECRET, EMPTY, FLAGS, in " in err
    assert not list((launcher.cloud.folder.parent / "cache").rglob("environment"))


def test_environment_words_are_checked():
    assert read_environment(["A", "B=x=y"], {"A": "1"}) == {"A": "1", "B": "x=y"}
    for words, sentence in (["9=1"], "got the name '9'"), (["A"], "env A has no value here"):
        with pytest.raises(UsageError, match=sentence):
            read_environment(words, {})


REFUSED = [
    ("create --name=Pod --type=v3-8", "name must be lower-case letters, digits and -"),
    ("create --zone=europe --type=v3-8", "zone must be REGION-LETTER"),
    ("create --type=v3-9", "v3 has 8, 32"),
    ("create", "--type is needed"),
    ("create --type=v3-8 --spot --reserved", "spot and reserved exclude each other"),
    ("create --type=v3-8 --valid_until=6h", "use it with --queued"),
    ("create --type=v3-8 --queued --valid_until=soon", "as in 90m or 6h, got 'soon'"),
    ("create --type=v3-8 --create_flag=-x", "must be flags of gcloud, --NAME=VALUE, got '-x'"),
    ("create --type=v3-8 --track=gamma", "track must be alpha or left out, got 'gamma'"),
    ("create --type=v3-8 --project=P", "project must be a project's id"),
    (
        "create --type=v3-8 --runtime_version=$(x)",
        "runtime_version must be an image, as in tpu-ubuntu",
    ),
    ("create --type=v3-8 extra", "create takes no arguments but flags, got 'extra'"),
    ("up --type=v3-8", "--workdir is needed"),
    ("up --type=v3-8 --workdir=gs://bucket", "workdir must be gs://bucket/path"),
    ("up --type=v3-8 --workdir=gs://bucket/../x", "workdir must be gs://bucket/path"),
    ("up --type=v3-8 --workdir=runs/x", "or an absolute path that all workers share"),
    ("up --type=v3-8 --workdir=/x --budget_hours=0", "budget_hours must be above 0"),
    ("up --type=v3-8 --poll_seconds=nan", "--poll_seconds must be a finite number, got nan"),
    ("up --type=v3-8 --zne=a", "unknown flag --zne: did you mean --zone"),
    ("up --type=v3-8 --workdir=/x --python=3", "python must be a version, as in 3.11"),
    ("up --type=v3-8 --workdir=/x --program=a;b", "program must be a module"),
    ("up --type=v3-8 --workdir=/x --git_url=https://a/b", "git_url needs --git_ref"),
    ("up --type=v3-8 --workdir=/x --git_ref=-x", "git_ref must be a branch, tag or commit"),
    (
        "up --type=v3-8 --workdir=/x --git_ref=a --git_url=https://u:secret@a/b",
        "without a password",
    ),
    ("up --type=v3-8 --workdir=/x --git_ref=a --git_url=https://secret@a/b", "without a password"),
    ("up --type=v3-8 --workdir=/x --requirements=/nowhere", "requirements '/nowhere' is not a"),
    ("up --type=v3-8 --workdir=/x --max_restarts=0", "max_restarts"),
    ("up --type=v3-8 --workdir=/x -- --workdir=/y", "gets its workdir from --workdir before"),
    ("up --type=v3-8 --workdir=/x --config=y", "the program's own flags come after --"),
    ("start", "the first argument must be one of create, setup, run"),
    ("ssh --worker=all", "a shell needs one worker"),
    ("logs --worker=x", "worker must be a number from 0, or all, got 'x'"),
    ("copy a b", "paths on workers, the destination or all sources, begin with a colon"),
    ("copy a :b :c", "paths on workers"),
    ("copy :a", "copy takes SOURCE… DESTINATION"),
]


# All in one process, as most of the time would go into starting many; not in this one, where other
# programs may have defined flags of the same names.
ALL_IN_ONE = """
import contextlib, io, json, shlex, sys
from absl import flags
from absl.testing import flagsaver
from effnetv2_jax.runtime import cli
from launch import run_launcher, tpu_vm
cli.leave = sys.exit
for line in sys.stdin:
    err = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(err):
        sys.argv = ["tpu_vm", *shlex.split(line)]
        try:
            flags.FLAGS.set_gnu_getopt(True)
            run_launcher(tpu_vm.main)
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, err.getvalue()]))
"""


def test_a_mistake_is_one_sentence_before_anything_is_done(launcher):
    words = [shlex.split(command) for command, _ in REFUSED]
    lines = [
        [*([] if "--name=" in command else ["--name=pod"]), "--zone=europe-west4-a", *line]
        for (command, _), line in zip(REFUSED, words, strict=True)
    ]
    result = subprocess.run(
        [sys.executable, "-c", ALL_IN_ONE],
        input="".join(f"{shlex.join(line)}\n" for line in lines),
        cwd=ROOT,
        env=launcher.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    for (command, sentence), (code, err) in zip(REFUSED, answers, strict=True):
        assert (code, err[:7], err.count("\n")) == (2, "error: ", 1), (command, err)
        assert sentence in err, command
        assert "secret" not in err
    assert launcher.cloud.calls() == []


def test_without_gcloud_it_says_so(launcher):
    launcher.environment["PATH"] = str(launcher.cloud.folder)
    code, _, err = launcher.run("status")
    assert code == 2
    assert err.splitlines()[-1] == "error: gcloud is not installed, or not on PATH"


def test_step_by_step_with_code_from_the_working_tree(launcher):
    """All commands but up, with this repository for the code."""
    workdir = f"--workdir={launcher.workdir}"
    assert launcher.run("create", "--type=v4-16")[0] == 0
    assert launcher.cloud.everything() == ["pod"]
    assert launcher.run("status")[1] == "pod: node READY, workers: 2\n"
    assert launcher.run("setup", workdir)[0] == 0
    home = launcher.cloud.home(launcher.cloud.read("nodes", "pod"), 1)
    assert (home / "effnetv2_jax" / "launch" / "tpu_vm.py").exists()
    (home / "effnetv2_jax" / "waits.py").write_text("import time\nprint('up')\ntime.sleep(600)\n")
    (home.parent / "0" / "effnetv2_jax" / "waits.py").write_text("import time\ntime.sleep(600)\n")
    assert launcher.run("run", workdir, "--program=waits")[0] == 0
    status = launcher.run("status")[1].splitlines()
    assert status[0] == "pod: node READY, workers: 2"
    assert [line.partition(": ")[2] for line in status[1:]] == ["running", "running"]
    assert launcher.run("run", workdir, "--program=waits")[1].count("runs already on") == 2
    assert launcher.run("setup", workdir)[2].count("its code is left alone") == 2 * 3
    wait_until(lambda: launcher.run("logs", "--worker=1")[1] == "up\n")
    code, out, _ = launcher.run("ssh", "--worker=1", job=["echo", "a  b", "$HOME"])
    assert (code, out) == (0, "a  b $HOME\n")
    source = launcher.cloud.folder.parent / "file"
    source.write_text("text")
    assert launcher.run("copy", str(source), ":there")[0] == 0
    assert (home / "there").read_text() == (home.parent / "0" / "there").read_text() == "text"
    assert launcher.run("copy", ":there", str(source.with_name("back")), "--worker=1")[0] == 0
    assert source.with_name("back").read_text() == "text"
    code, out, err = launcher.run("stop")
    assert code == 0
    assert out.count("has stopped") == 2
    assert "pod still exists and costs money" in err
    assert launcher.run("status")[1].count("stopped") == 2
    assert launcher.run("delete")[0] == 0
    assert launcher.cloud.everything() == []
    assert "nothing is left of pod" in launcher.run("delete")[2]


def test_delete_finds_a_queued_resource_by_itself(launcher):
    assert launcher.run("create", "--type=v4-8", "--queued")[0] == 0
    assert launcher.cloud.everything() == ["pod", "pod"]
    assert launcher.run("delete")[0] == 0
    assert launcher.cloud.everything() == []


def test_the_bundle_has_what_git_tracks_or_could(tmp_path):
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    git = ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for name, text in {
        ".gitignore": "secrets\n",
        "changed.py": "1",
        "deleted.py": "1",
        "secrets": "x",
        "folder/naïve name.py": "1",
    }.items():
        (tree / name).write_text(text)
    subprocess.run([*git, "add", "."], check=True)
    (tree / "changed.py").write_text("2")
    (tree / "deleted.py").unlink()
    (tree / "new.py").write_text("3")
    (tree / "link.py").symlink_to("new.py")
    requirements = tmp_path / "pins.txt"
    requirements.write_text("a==1\n")
    target = tmp_path / "bundle"
    make_bundle(target, requirements=requirements, tree=tree)
    with tarfile.open(target / "code.tar.gz") as tar:
        members = {member.name: member for member in tar}
        changed = tar.extractfile("changed.py").read()
    assert set(members) == {".gitignore", "changed.py", "folder/naïve name.py", "link.py", "new.py"}
    assert changed == b"2"
    assert {member.uname for member in members.values()} == {""}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {path.name for path in target.iterdir()} == {
        *("code.tar.gz", "requirements.txt", "setup.sh", "start.sh", "supervise.sh"),
        *("report.sh", "stop.sh"),
    }
    (tree / "out.py").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match=r"'out\.py' is a link to a file outside"):
        make_bundle(target, requirements=requirements, tree=tree)
    with pytest.raises(UsageError, match="is not a git repository"):
        make_bundle(target, requirements=requirements, tree=tmp_path)


def test_it_needs_absl_and_nothing_else():
    code = (
        "import sys, launch.tpu_vm; "
        "own = {'launch', 'effnetv2_jax', 'absl', '__main__', '__mp_main__'}; "
        "names = {name.partition('.')[0] for name in sys.modules}; "
        "sys.exit(', '.join(sorted(names - own - sys.stdlib_module_names - before)) or 0)"
    )
    code = "import sys; before = {n.partition('.')[0] for n in sys.modules}; " + code
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


# test_keep_alive.py interrupts with SIGINT.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_says_what_is_left_and_that_goes_away(launcher, number):
    arguments, keywords = launcher.up(job=["--steps=100000"])
    process = launcher.start(*arguments, **keywords)
    wait_until(lambda: launcher.results())
    code, err = interrupt(process, number)
    assert code == 130
    assert launcher.cloud.everything() == ["pod"]
    assert launcher.clean_up(err)
    assert launcher.cloud.everything() == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("flags", [(), ("--queued", "--spot", "--valid_until=6h"), ("--reserved",)])
def test_a_real_gcloud_understands_what_it_is_told(launcher, tmp_path, flags):
    """It has no account here, nor looks for one, and says so once it has understood the rest."""
    arguments, keywords = launcher.up("--delete_when_done", "--ssh_flag=--internal-ip", *flags)
    commands = printed(launcher, *arguments, **keywords)
    commands += printed(launcher, "ssh", job=["ls", "-l"])
    commands += printed(launcher, "copy", ":a", ":b", ".")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_PROJECT": "my-project",
    }
    for command in commands:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 1
        assert "You do not currently have an active account selected" in result.stderr, command
    refused = subprocess.run(
        [*commands[0], "--nonsense"], env=environment, capture_output=True, text=True, check=False
    )
    assert "unrecognized arguments: --nonsense" in refused.stderr

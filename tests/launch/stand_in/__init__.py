"""Stand-ins for Google Cloud: ``gcloud``, and what workers have that this machine has not.

``gcloud.py`` is the program, ``cloud.py`` the state that it keeps and what tests do to it,
``launcher.py`` the launcher as a command with these on its PATH. ``worker_bin`` is in front of the
PATH of workers: uv, python3 (for pip alone), gcsfuse, mountpoint and hostname. Everything else on a
worker is real: bash, tar, git, flock, setsid, sync.
"""

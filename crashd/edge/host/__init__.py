"""The host: sysctl, systemd, journal, kmsg, inotify, hooks."""

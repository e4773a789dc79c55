#!/bin/sh
# systemd 252 (Debian 12): a timestamp with the abbreviation of the local zone is refused in winter.
#
# systemd.time(7) says that the local timezone's name may follow a timestamp. CEST is taken in summer, but CET is
# refused in winter, as is EST beside EDT: so `journalctl --since` refuses the times that `date` and `journalctl
# --list-boots` print for half of the year. A zone without summer time (IST) is taken.
# crashd therefore parses these itself (crashd/domain/crash/timestamp.py), and compares only the other forms.
#
# Output seen:
#   Europe/Berlin CET refused, Europe/Berlin CEST taken, America/New_York EST refused, America/New_York EDT taken, Asia/Kolkata IST taken
set -eu
seen=
for case in "Europe/Berlin 01 CET" "Europe/Berlin 07 CEST" "America/New_York 01 EST" "America/New_York 07 EDT" \
    "Asia/Kolkata 01 IST"; do
    # shellcheck disable=SC2086
    set -- $case
    if TZ=$1 systemd-analyze timestamp "2026-$2-23 05:02:09 $3" >/dev/null 2>&1; then word=taken; else word=refused; fi
    seen="${seen:+$seen, }$1 $3 $word"
done
printf '%s\n' "$seen"
test "$seen" = "Europe/Berlin CET refused, Europe/Berlin CEST taken, America/New_York EST refused, America/New_York EDT taken, Asia/Kolkata IST taken"

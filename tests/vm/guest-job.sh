#!/bin/bash
# guest-job - in the guest: unpack the job from the raw disk "jobin", run its run.sh, put what it left in $RESULT on the
# raw disk "jobout", and switch off. The stage is counted on the root disk, so that a job goes on after a panic: run.sh
# is called again, with the next STAGE. Exit 99 is "reboot, and call me again".
export TERM=dumb SYSTEMD_COLORS=0 SYSTEMD_PAGER=cat LC_ALL=C.UTF-8 HOME=/root
job=/var/lib/guest-job/unpacked # not /run, which is a tenth of the memory
rm -rf $job
mkdir -p $job
tar xf /dev/disk/by-id/virtio-jobin -C $job || exit 1
cd $job || exit 1
state=/var/lib/guest-job/$(cat .jobid)
RESULT=$state/result
mkdir -p "$RESULT"
STAGE=$(cat "$state/stage" 2>/dev/null || echo 0)
export RESULT STAGE
echo $((STAGE + 1)) >"$state/stage"
sync -f "$state/stage"
echo "guest-job: stage $STAGE begins, uptime $(cut -d' ' -f1 /proc/uptime)"
bash ./run.sh
status=$?
echo "guest-job: stage $STAGE ended with $status, uptime $(cut -d' ' -f1 /proc/uptime)"
if [ $status = 99 ]; then
	sync
	systemctl --no-block reboot
	exit 0
fi
echo $status >"$RESULT/status"
tar cf - -C "$RESULT" . | dd of=/dev/disk/by-id/virtio-jobout bs=1M conv=fsync status=none
sync
systemctl --no-block poweroff

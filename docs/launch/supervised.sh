#!/usr/bin/env bash
# Runs one process of a run, and ends with a status that a supervisor understands:
#
#     0    finished
#     75   start it again: another process was lost, this one was killed, or SIGTERM stopped it, and it has saved
#     100  an error that needs a person; its message is above
#
#     docs/launch/supervised.sh owl3 train --config configs/digits.py --workdir runs/digits
#
# `owl3 train` itself ends with 0 after SIGTERM too, which Kubernetes would take for the end of the run; and with 1 after an
# error, which `srun` hides behind the 75 of the other processes, because it returns the highest status.

stopped= signalled= child= status=

forward() {
    signalled=yes
    kill -s "$1" "$child" 2>/dev/null
}

trap 'stopped=yes; forward TERM' TERM
trap 'forward INT' INT

set -m # a process group of its own: a signal to this group reaches the command once, since a second one would end it unsaved
"$@" &
child=$!

while true; do # a signal ends `wait` too
    signalled=
    wait "$child"
    result=$?
    [[ $status && $result == 127 ]] || status=$result # 127: the wait before has got the status already
    [[ $signalled ]] || break
done

if ((status == 0)) && [[ ! $stopped ]]; then
    exit 0
elif ((status == 0 || status == 75 || (status > 128 && status != 130))); then # above 128: by a signal; 130: Ctrl-C
    exit 75
fi
exit 100

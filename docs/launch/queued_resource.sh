#!/usr/bin/env bash
# Trains on a Cloud TPU slice by a queued resource: asks for the slice, runs the image on all of its hosts, asks again when the
# slice is taken away, and deletes it when the run has finished. Run it where it can stay, in tmux for example:
#
#     export NAME=owl3 ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite FLAGS=--spot
#     export IMAGE=us-docker.pkg.dev/PROJECT/owl3/owl3 NFS=10.0.0.2:/runs
#     docs/launch/queued_resource.sh --config configs/stage1.py:1b-241014 --workdir /runs/stage1
#
# NFS is the folder that all hosts mount as /runs. Started again, it goes on with the slice that is there. After an error that
# needs a person it ends with 1 and keeps the slice.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${RUNTIME:?}" "${IMAGE:?}" "${NFS:?}"
pause=${PAUSE:-30} # seconds between two looks

queued() {
    gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"
}

state() {
    local answer
    if answer=$(queued describe --format='value(state.state)' 2>&1); then
        echo "${answer##*$'\n'}"
    elif [[ $answer == *NOT_FOUND* ]]; then
        echo NONE
    else
        echo "$answer" >&2
    fi
}

delete() {
    queued delete --force --quiet
}

# On each host. A container that an earlier connection has left behind is stopped first, which saves.
on_host() {
    local volume="type=volume,destination=/runs,volume-driver=local,volume-opt=type=nfs"
    volume+=",volume-opt=device=:${NFS#*:},volume-opt=o=addr=${NFS%%:*}"
    echo "sudo gcloud auth configure-docker ${IMAGE%%/*} --quiet"
    echo "sudo docker stop -t 300 owl3; sudo docker rm -f owl3"
    echo "sudo docker run --name owl3 --privileged --network host --mount $volume" \
        "--env JAX_COMPILATION_CACHE_DIR=/runs/compiled --entrypoint /owl3/supervised.sh $IMAGE owl3 train$(printf ' %q' "$@")"
    echo 'echo "owl3 train has ended with $?"'
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

while true; do
    case $(state) in
    NONE)
        # shellcheck disable=SC2086  # FLAGS may be several, or none
        queued create --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${FLAGS:-}
        ;;
    ACTIVE)
        gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$(on_host "$@")" | tee "$log" || true
        statuses=$(sed -n 's/.*owl3 train has ended with //p' "$log" | sort -u | tr '\n' ' ') # of all hosts, each once
        case $statuses in
        "0 ")
            delete
            exit 0
            ;;
        "" | "75 " | "0 75 ") sleep "$pause" ;; # none: the slice is gone, or the connection
        *)
            echo "the run has ended with an error on a host (statuses: $statuses). $NAME is kept: look at it, then start this again" >&2
            exit 1
            ;;
        esac
        ;;
    FAILED | SUSPENDED) delete ;;
    *) sleep "$pause" ;; # it waits, is being made or being deleted, or the state could not be read
    esac
done

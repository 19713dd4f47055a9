#!/bin/bash
# One run on several hosts that are reached by ssh, the first of them the coordinator.
#
#   tools/cluster/ssh.sh "node1 node2" --dataset=hippocampus_t1w --data_dir=DATA --run_dir=RUN ...
#
# FLEXUNET  how the command is called on the hosts (default: flexunet)
# PORT      a free port of the first host (default: 61500)
# Ctrl-C or SIGTERM saves the run and ends it on all hosts; the same command continues it.
set -u
read -r -a hosts <<<"${1:?the hosts, in quotes}"
shift
flexunet=${FLEXUNET:-flexunet}
port=${PORT:-61500}
ssh=${SSH:-ssh}

pid_of() {
  echo "\${TMPDIR:-/tmp}/flexunet.$port.$1.pid"
}

stop() {
  # One is enough: all hosts end at the same step.
  "$ssh" "${hosts[0]}" "kill -TERM \$(cat $(pid_of 0))"
}
trap stop INT TERM

processes=()
for number in "${!hosts[@]}"; do
  words=$(printf ' %q' train "--coordinator=${hosts[0]}:$port" "--num_processes=${#hosts[@]}" \
    "--process_id=$number" "$@" --resume)
  "$ssh" "${hosts[$number]}" "echo \$\$ >$(pid_of "$number"); exec $flexunet$words" \
    </dev/null 2> >(sed "s/^/${hosts[$number]}: /" >&2) &
  processes+=($!)
done

result=0
for process in "${processes[@]}"; do
  wait "$process"
  code=$?
  while kill -0 "$process" 2>/dev/null; do # A signal has only interrupted the waiting.
    wait "$process"
    code=$?
  done
  if [ "$code" -ne 0 ]; then
    result=$code
  fi
done
exit "$result"

#!/usr/bin/env bash
# The job of one TPU worker, in the background, so that it outlives the connection: launch.py calls this over ssh.
#
#   job.sh start COMMAND     its output goes to ~/xdistil-job/log, its exit status to ~/xdistil-job/exit
#   job.sh status COMMAND    none | running | dead | exit N; none, too, where another command has ended
#   job.sh stop              SIGTERM, on which xdistil saves where it is; SIGKILL after two minutes
#   job.sh tail              the log, as it grows
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
job=$HOME/xdistil-job

running() { [[ -s $job/pid ]] && kill -0 -- "-$(<"$job/pid")" 2>/dev/null; }

start() {
  if running; then
    echo "a job is running already (process group $(<"$job/pid")): stop it first" >&2
    exit 1
  fi
  mkdir -p "$job"
  rm -f "$job/exit"
  printf '%s' "$1" >"$job/command"
  # shellcheck disable=SC2016
  PATH=$PWD/.venv/bin:$PATH setsid bash -c 'bash -c "$1"; echo "$?" >"$2.new"; mv "$2.new" "$2"' \
    _ "$1" "$job/exit" >"$job/log" 2>&1 </dev/null &
  echo "$!" >"$job/pid"
}

status() {
  if running; then
    echo running
  elif [[ ! -e $job/command || $(<"$job/command") != "$1" ]]; then
    echo none
  elif [[ -e $job/exit ]]; then
    echo "exit $(<"$job/exit")"
  else
    echo dead
  fi
}

stop() {
  running || return 0
  kill -TERM -- "-$(<"$job/pid")"
  for _ in {1..240}; do
    running || return 0
    sleep 0.5
  done
  kill -KILL -- "-$(<"$job/pid")"
}

case ${1-} in
  start) start "$2" ;;
  status) echo "xdistil-job $(status "$2")" ;;
  stop) stop ;;
  tail) exec tail -n 50 -F "$job/log" ;;
  *)
    echo "usage: job.sh start COMMAND | status COMMAND | stop | tail" >&2
    exit 2
    ;;
esac

#!/bin/sh
# A worker of a decoder on several nodes: waits for mpirun of the leader, which comes by ssh. No root is needed.
#
#   worker.sh                with the keys in /etc/nvlm-ssh: id_ed25519 (leader) and authorized_keys (workers)
set -eu
keys=/etc/nvlm-ssh
home=$(mktemp -d)
ssh-keygen -q -t ed25519 -N '' -f "$home/host_key"
exec /usr/sbin/sshd -D -e -f /dev/null -p 2222 -h "$home/host_key" \
    -o PidFile=none -o UsePAM=no -o StrictModes=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
    -o AuthorizedKeysFile="$keys/authorized_keys" -o AllowTcpForwarding=no -o X11Forwarding=no -o PermitTunnel=no

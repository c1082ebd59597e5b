"""The OCF resource agents of mirrorha, one file each, and the runtime they share (`agents.ocf`)."""

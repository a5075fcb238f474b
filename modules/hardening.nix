# How the unit is confined: `strict` for every role, and what the role `worker` takes back of it.
{
  strict = {
    CapabilityBoundingSet = "";
    KeyringMode = "private";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateTmp = true;
    PrivateUsers = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    # Not `ProcSubset = "pid"`: the metrics of the process need the time of the boot, which is in /proc/stat.
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_UNIX"
    ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      # Not `~@resources`: it would refuse to tell how many files may be open, after which connections are bounded.
      "~@privileged"
    ];
    UMask = "0077";
  };

  worker = {
    # The sandbox is made of namespaces: a user, mount, process, IPC, host name, network and control group namespace.
    RestrictNamespaces = false;
    # It maps the worker's user, who must be the machine's own for that.
    PrivateUsers = false;
    # It sets a host name of its own.
    ProtectHostname = false;
    # Each action has a control group below the unit's (with `Delegate`).
    ProtectControlGroups = false;
    # The kernel mounts a new /proc in a user namespace only where nothing covers a part of the old one, as these would.
    ProtectKernelLogs = false;
    ProtectKernelTunables = false;
    ProtectProc = "default";
    # Filters of system calls reach the actions, too, and would make their results depend on the host. What they may call is the sandbox's
    # to say (docs/sandbox.md); these would refuse debuggers, just-in-time compilers, and setuid bits in what a build makes.
    LockPersonality = false;
    MemoryDenyWriteExecute = false;
    RestrictSUIDSGID = false;
    # What stays is what the sandbox refuses as well, with an error of its own that comes first; it sets up a loopback interface by netlink.
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
      "AF_UNIX"
    ];
    SystemCallFilter = [
      "~@clock"
      "~@module"
      "~@raw-io"
      "~@reboot"
      "~@swap"
    ];
  };
}

# What all hosts know of the farm.
{
  services.croft.farm = {
    domain = "farm.example";
    clients = [ "10.8.0.0/16" ];
    hosts = {
      control = {
        roles = [
          "cas"
          "scheduler"
          "monitoring"
        ];
        address = "10.7.0.11";
      };
      worker1 = {
        roles = [ "worker" ];
        address = "10.7.0.21";
      };
    };
  };

  services.croft.tls = {
    certificate = "/var/lib/secrets/croft/tls.crt";
    key = "/var/lib/secrets/croft/tls.key";
    authorities = "/var/lib/secrets/croft/authority.crt";
    clients.authorities = "/var/lib/secrets/croft/authority.crt";
    clients.required = false;
  };

  services.croft.access.rules = [
    {
      who = [ "authenticated" ];
      may = [
        "read"
        "write"
        "execute"
      ];
    }
  ];
}

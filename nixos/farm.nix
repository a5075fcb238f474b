# The farm that the hosts of this folder make together; an example to change.
{
  services.croft.farm = {
    domain = "farm.example";
    clients = [ "10.8.0.0/16" ];
    hosts = {
      cas = {
        roles = [ "cas" ];
        address = "10.7.0.11";
      };
      scheduler = {
        roles = [ "scheduler" ];
        address = "10.7.0.12";
      };
      monitoring = {
        roles = [ "monitoring" ];
        address = "10.7.0.13";
      };
      worker = {
        roles = [ "worker" ];
        address = "10.7.0.21";
      };
    };
  };

  # Each host's certificate has its name, and comes from one authority for the whole farm. How it gets there is for whoever installs
  # it: an ACME client with `services.croft.tls.acme`, or a file.
  services.croft.tls = {
    certificate = "/var/lib/secrets/croft/tls.crt";
    key = "/var/lib/secrets/croft/tls.key";
    authorities = "/var/lib/secrets/croft/authority.crt";
    clients.authorities = "/var/lib/secrets/croft/authority.crt";
    # People show tokens.
    clients.required = false;
  };

  services.croft.access.rules = [
    {
      who = [ "group:ci" ];
      may = [
        "read"
        "write"
        "cache-write"
        "execute"
      ];
    }
    {
      who = [ "group:developers" ];
      may = [
        "read"
        "write"
        "execute"
      ];
    }
  ];
}

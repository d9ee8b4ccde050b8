# A DGX in a rack: GitHub Enterprise Server, several Runs at a time, a model server with a key on another machine, TLS by nginx, and
# backups on another disk. The secrets are put under /run/secrets by a tool such as sops-nix.
{ pkgs, ... }:
{
  services.fettle = {
    enable = true;
    settings = {
      server.listen = "127.0.0.1:8080";
      forge.api_url = "https://github.example.org/api/v3";
      forge.hosts = [ "github.example.org" ];
      forge.app_id = 7;
      forge.app_key_file = "app.pem";
      forge.webhook_secret_file = "webhook-secret";
      auth.worker_key_file = "worker.key";
      agent.sandbox.min_level = "full";
      agent.sandbox.prepare_hosts = [ "packages.example.org" ];
      gateway.models = [
        {
          name = "coder";
          base_url = "https://models.example.org/v1";
          api_key_file = "models.key";
          context = 131072;
        }
      ];
    };
    secrets = {
      "app.pem" = "/run/secrets/fettle/app.pem";
      "models.key" = "/run/secrets/fettle/models.key";
      "webhook-secret" = "/run/secrets/fettle/webhook-secret";
      "worker.key" = "/run/secrets/fettle/worker.key";
    };
    worker.instances = 12;
    worker.memoryMax = "48G";
    worker.extraPackages = [
      pkgs.cargo
      pkgs.gcc
      pkgs.gnumake
      pkgs.nodejs
      (pkgs.python3.withPackages (python: [ python.pytest ]))
      pkgs.rustc
    ];
    backup.onCalendar = "*-*-* 02:00:00";
    backup.keep = 30;
    backup.destination = "/mnt/backup/fettle";
  };

  services.nginx.enable = true;
  services.nginx.virtualHosts."fettle.example.org" = {
    forceSSL = true;
    sslCertificate = "/run/secrets/fettle/tls.crt";
    sslCertificateKey = "/run/secrets/fettle/tls.key";
    locations."/" = {
      proxyPass = "http://127.0.0.1:8080";
      # Streams of events stay open.
      extraConfig = "proxy_buffering off; proxy_read_timeout 1h;";
    };
  };
  networking.firewall.allowedTCPPorts = [ 443 ];
}

# One host that is a cluster: k3s, a certificate by cert-manager, a worker for each Run that waits. The archives are those of a
# bundle (`cargo xtask bundle`) that lies on the host; the secrets are files that only root can read.
{
  services.fettle.k3s = {
    enable = true;
    tokenFile = "/run/secrets/k3s-token";
    agentTokenFile = "/run/secrets/k3s-agent-token";
    host = "fettle.example.org";
    workers = 4;
    airgap = [
      "/srv/bundle/images/fettle.tar"
      "/srv/bundle/images/others.tar"
    ];
    charts = {
      fettle = "/srv/bundle/charts/fettle.tgz";
      cert-manager = "/srv/bundle/charts/cert-manager.tgz";
      keda = "/srv/bundle/charts/keda.tgz";
    };
    settings = {
      forge = {
        app_id = 123456;
        app_key_file = "app.pem";
        webhook_secret_file = "webhook-secret";
      };
      gateway.models = [
        {
          name = "coder";
          base_url = "https://models.example.org/v1";
        }
      ];
    };
    secrets = {
      "app.pem" = "/run/secrets/fettle/app.pem";
      "webhook-secret" = "/run/secrets/fettle/webhook-secret";
    };
  };
}

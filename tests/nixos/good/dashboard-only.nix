# The half that holds the credentials; workers on another host reach its internal listener through a tunnel.
{
  services.fettle = {
    enable = true;
    worker.enable = false;
    dashboard.openFirewall = true;
    settings = {
      server.listen = "0.0.0.0:8080";
      server.internal_listen = "10.9.0.1:8081";
      forge.app_id = 7;
      forge.app_key_file = "app.pem";
      forge.webhook_secret_file = "webhook-secret";
      forge.webhook_secret_previous_file = "webhook-secret-before";
      auth.worker_key_file = "worker.key";
    };
    secrets = {
      "app.pem" = "/run/secrets/app.pem";
      "webhook-secret" = "/run/secrets/webhook-secret";
      "webhook-secret-before" = "/run/secrets/webhook-secret-before";
      "worker.key" = "/run/secrets/worker.key";
    };
  };
}

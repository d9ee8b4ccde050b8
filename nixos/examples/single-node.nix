# One machine with everything: dashboard, one worker, a nightly backup. Webhooks arrive at a reverse proxy, which is not shown.
{
  services.fettle = {
    enable = true;
    settings = {
      forge.app_id = 123456;
      forge.app_key_file = "app.pem";
      forge.webhook_secret_file = "webhook-secret";
      auth.worker_key_file = "worker.key";
      gateway.models = [
        {
          name = "coder";
          base_url = "http://127.0.0.1:8000/v1";
        }
      ];
    };
    secrets = {
      "app.pem" = "/etc/fettle-secrets/app.pem";
      "webhook-secret" = "/etc/fettle-secrets/webhook-secret";
      "worker.key" = "/etc/fettle-secrets/worker.key";
    };
  };
}

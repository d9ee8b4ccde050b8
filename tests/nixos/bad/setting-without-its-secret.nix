# refused: set services.fettle.secrets."webhook-secret" to the path of a file
{
  imports = [ ../base.nix ];
  services.fettle.settings.forge.webhook_secret_file = "webhook-secret";
}

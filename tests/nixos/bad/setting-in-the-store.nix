# refused: services.fettle.settings.forge.webhook_secret_file lies in the Nix store
{
  imports = [ ../base.nix ];
  services.fettle.settings.forge.webhook_secret_file = ./setting-in-the-store.nix;
}

# refused: set services.fettle.settings.server.listen to "0.0.0.0:8080"
{
  imports = [ ../base.nix ];
  services.fettle.dashboard.openFirewall = true;
}

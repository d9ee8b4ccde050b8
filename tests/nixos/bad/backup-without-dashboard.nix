# refused: set it where the dashboard is
{
  imports = [ ../base.nix ];
  services.fettle.dashboard.enable = false;
  services.fettle.worker.dashboard.url = "http://10.9.0.1:8081";
  services.fettle.backup.enable = true;
}

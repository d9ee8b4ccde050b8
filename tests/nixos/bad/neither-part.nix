# refused: set services.fettle.dashboard.enable or services.fettle.worker.enable
{
  imports = [ ../base.nix ];
  services.fettle.dashboard.enable = false;
  services.fettle.worker.enable = false;
}

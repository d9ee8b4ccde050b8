# refused: set services.fettle.dashboard.enable, services.fettle.worker.enable or services.fettle.inference.enable
{
  imports = [ ../base.nix ];
  services.fettle.dashboard.enable = false;
  services.fettle.worker.enable = false;
}

# refused: set services.fettle.worker.dashboard.url to the address of its internal listener
{
  imports = [ ../base.nix ];
  services.fettle.dashboard.enable = false;
}

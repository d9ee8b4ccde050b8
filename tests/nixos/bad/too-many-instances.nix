# refused: set it to 99 at most
{
  imports = [ ../base.nix ];
  services.fettle.worker.instances = 100;
}

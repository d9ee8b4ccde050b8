# refused: set services.fettle.worker.instances
{
  imports = [ ../base.nix ];
  services.fettle.settings.agent.workers = 4;
}

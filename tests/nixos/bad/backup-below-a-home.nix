# refused: choose a folder elsewhere
{
  imports = [ ../base.nix ];
  services.fettle.backup.destination = "/home/fettle/backup";
}

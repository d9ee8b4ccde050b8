# refused: give it as an absolute path
{
  imports = [ ../base.nix ];
  services.fettle.backup.destination = "backup";
}

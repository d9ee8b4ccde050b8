{
  imports = [ ../../../nixos/examples/k3s.nix ];
  services.fettle.k3s.openNodePorts = true;
}

{
  services.fettle.k3s = {
    enable = true;
    role = "agent";
    serverAddr = "https://10.0.0.1:6443";
    tokenFile = "/run/secrets/agent-token";
    openNodePorts = true;
  };
}

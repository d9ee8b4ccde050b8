# Stand-ins for nixpkgs: every package evaluates, has a path of its own name, and is never built.
let
  inherit (builtins) listToAttrs map;

  # A derivation as far as the module system looks.
  package =
    name:
    let
      self = {
        type = "derivation";
        inherit name;
        pname = name;
        version = "1";
        system = "x86_64-linux";
        outPath = "/nix/store/stand-in-${name}";
        drvPath = "/nix/store/stand-in-${name}.drv";
        outputName = "out";
        outputs = [ "out" ];
        meta = {
          description = name;
          mainProgram = name;
        };
        # nginx is asked for these.
        modules = [ ];
        override = _: self;
        overrideAttrs = _: self;
      }
      // listToAttrs (
        map
          (output: {
            name = output;
            value = self;
          })
          [
            "bin"
            "dev"
            "lib"
            "man"
            "out"
          ]
      );
    in
    self;

  named =
    names:
    listToAttrs (
      map (name: {
        inherit name;
        value = package name;
      }) names
    );
in
{
  inherit package named;
}

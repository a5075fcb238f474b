# The appliance as something to write to a disk, a stick, or a cloud. The images bring disks of their own.
{
  nixpkgs,
  self,
  system,
}:
let
  appliance = nixpkgs.lib.nixosSystem {
    modules = [
      self.nixosModules.default
      ./appliance.nix
      {
        nixpkgs.hostPlatform = system;
        networking.hostName = "appliance";
      }
    ];
  };
  inherit (appliance.config.system.build) images;
in
{
  image-amazon = images.amazon;
  image-iso = images.iso;
  image-qcow2 = images.qemu-efi;
}

// Portkey's server listens on every address of the machine and takes no other. A proxy that goes wherever a header says
// has no business there, so a port that comes without a host is opened on loopback only.
const { Server } = require("node:net");

const { listen } = Server.prototype;

Server.prototype.listen = function (first, ...others) {
  if (typeof first !== "number") return listen.call(this, first, ...others);
  const told = others.find((other) => typeof other === "function");
  return listen.call(this, { port: first, host: "127.0.0.1" }, told);
};

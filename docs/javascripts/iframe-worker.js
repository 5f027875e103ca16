// Browsers start no Worker from file:. This one runs its script in a hidden frame there, so that the search works on a disk.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const room = this.frame.contentWindow;
      // What the script says to whoever started it.
      room.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = room.document.createElement("script");
      this.ready = new Promise((done, failed) => Object.assign(script, { onload: done, onerror: failed }));
      script.src = new URL(url, location.href).href;
      room.document.body.append(script);
    }
    postMessage(data) {
      const room = this.frame.contentWindow;
      // Not before the script listens; the order stays, since promises keep it.
      this.ready.then(() => room.dispatchEvent(new room.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}

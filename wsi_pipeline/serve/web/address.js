"use strict";
// Addresses of the server. Behind a proxy they begin with the root path, which every page carries.

/** The address of a path of this server, such as "/api/v1/slides". */
const at = (path) => document.documentElement.dataset.root + path;

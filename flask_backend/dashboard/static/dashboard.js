// Keeps open pages up to date.
"use strict";

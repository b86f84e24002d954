// Small arithmetic of lists.

export const range = (n) => [...Array(n).keys()];
export const sum = (values) => values.reduce((total, value) => total + value, 0);
export const mean = (values) => sum(values) / values.length;
export const product = (values) => values.reduce((total, value) => total * value, 1);
export const known = (value) => Number.isFinite(value);
export const greatest = (values) => values.reduce((top, value) => Math.max(top, value), 0);
export const strongest = (values) => values.reduce((top, value) => Math.max(top, Math.abs(value)), 1e-30);
export const span = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
/** The cell of n that lies where one of N does. */
export const under = (i, N, n) => Math.floor((i * n) / N);
